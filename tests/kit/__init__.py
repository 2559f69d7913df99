"""Small models, suites and helpers that tests of several rooms use."""
