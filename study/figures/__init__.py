"""Every figure: data in, Figure out."""
