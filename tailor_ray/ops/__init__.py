"""What an operator asks: does it work here, what will it cost, run it over there."""
