"""Operators: public functions, autograd and the choice of back end."""
