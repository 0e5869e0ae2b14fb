"""What each token of a row is: source, target, or not counted. No torch."""

TARGET, SOURCE, IGNORE = 0, 1, -100

DOMAIN_LABELS = "domain_labels"
