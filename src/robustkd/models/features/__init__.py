"""Reading the intermediate features of any network."""
