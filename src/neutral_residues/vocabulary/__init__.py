"""New tokens for a target language, which leave the backbone's ids and source text as they are."""
