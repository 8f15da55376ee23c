"""The emoji world: 1,461 concepts, each drawn in five styles, with texts, scenes and questions made from them."""
