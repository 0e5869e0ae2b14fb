"""Extensions as folders that other programs load, verified in a process without this package."""
