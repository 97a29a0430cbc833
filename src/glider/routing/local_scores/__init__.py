"""The local scores: how well each expert suits each token at a site, one way a file."""
