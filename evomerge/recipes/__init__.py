"""Recipes: to and from YAML, to mergekit, and to a merged model with its card."""
