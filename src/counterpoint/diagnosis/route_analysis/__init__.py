"""Which neurons and heads each domain uses, which two domains share, and who pulls them where."""
