"""16-bit states, gradient scaling, gradient compression, the optimizer inside backward."""
