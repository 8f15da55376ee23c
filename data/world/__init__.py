"""The embedded world: 48 things in many icon styles, nine colours, scenes of one to four things, emoji, and texts about
them."""
