"""Built and tested, but not shown to pay: not part of the public interface, and it may go."""
