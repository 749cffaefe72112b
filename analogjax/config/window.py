"""What an analog's size and day may be, beside its frontier model's.

Source: "Require Frontier AI Labs To Release Small Analog Models": "A size cap
between 0.5% and 5% of the frontier model's parameters", "released within 1-3
months following the deployment of their corresponding frontier model".
"""

# Both ends are inside. Sizes are compared by TIMES, in whole numbers.
TIMES = (20, 200)  # The frontier model's parameters in the analog's.
SIZE = (0.005, 0.05)  # The analog's in the frontier model's.
MONTHS = (1, 3)  # Of the calendar.
# As a record holds it.
RECORD = {"size": [0.005, 0.05], "months": [1, 3]}
