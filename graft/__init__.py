"""graft: graft a new head onto a pretrained network, prove that it took, ship it."""
