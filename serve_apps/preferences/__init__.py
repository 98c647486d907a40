"""What recipients decide for themselves: the preference page, and the confirmation of a sign-up.

``app`` is an inner app of tracking's replicas (``front``): the same short links at the root, and no
process of its own.
"""
