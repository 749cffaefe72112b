"""`python -m analogjax` is the command line."""

import sys

from analogjax import main

if __name__ == "__main__":
  sys.exit(main.main())
