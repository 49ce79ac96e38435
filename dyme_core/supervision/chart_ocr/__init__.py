"""Facts of a chart's picture, offline (the extra `ocr`)."""
