"""The public operations, one folder each: ``api.py`` checks, documents and dispatches."""
