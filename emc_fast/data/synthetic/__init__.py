"""A seeded synthetic corpus of conversations in the REACT 2024 layout.

``script`` draws what happens in a conversation, ``face`` and ``voice`` turn one person's part of it into the files' numbers, ``writer``
lays the tree out. Nothing here claims to resemble people: it is material with a known relation between speaker and listener, for tests,
demonstrations and timing.
"""

from .writer import synthesize_corpus

__all__ = ["synthesize_corpus"]
