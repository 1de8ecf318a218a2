"""Types, errors, methods and small tools that the whole package shares."""
