"""Questions on pictures: the record schema, the data sets, and how an answer is scored."""
