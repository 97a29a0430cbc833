"""Global signals: which experts suit a whole query, one way a file."""
