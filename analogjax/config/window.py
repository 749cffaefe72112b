"""The allowed size and day of an analog, relative to its frontier model.

Source: "Require Frontier AI Labs To Release Small Analog Models": "A size cap
between 0.5% and 5% of the frontier model's parameters", "released within 1-3
months following the deployment of their corresponding frontier model".
"""

# Both ends are inside. Sizes are compared by TIMES, in whole numbers.
TIMES = (20, 200)  # Frontier parameters per analog parameter.
SIZE = (0.005, 0.05)  # Analog parameters per frontier parameter.
MONTHS = (1, 3)  # Calendar months.
# In the form of a record.
RECORD = {"size": [0.005, 0.05], "months": [1, 3]}
