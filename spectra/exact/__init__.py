"""The exact trace and diagonal: back-propagated factors of the criterion's Hessian, and whose trace it then is."""
