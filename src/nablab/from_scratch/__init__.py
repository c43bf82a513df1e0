"""Networks in NumPy alone, as a student reads them."""
