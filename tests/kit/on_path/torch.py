"""tensorboardX imports torch where it can, which takes longer than a stage."""

raise ImportError("hidden from the processes of the tests")
