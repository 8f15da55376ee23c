"""What a recipe will cost, before a weight is loaded: parameters, memory, operations, days, bytes."""
