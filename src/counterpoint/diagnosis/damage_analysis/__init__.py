"""What a later edit costs an earlier domain: first order, second order, measured."""
