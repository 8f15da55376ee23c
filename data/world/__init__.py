"""The embedded world: 48 things as icons of many styles in nine colours, emoji images, scenes of one to four objects,
and texts about them."""
