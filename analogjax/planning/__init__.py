"""What a config will take on machines that need not be there."""
