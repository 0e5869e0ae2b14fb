"""Documents (`text`) -> blocks of tokens on disk (`tokens`) -> rows in a fixed order (`mixing`)."""
