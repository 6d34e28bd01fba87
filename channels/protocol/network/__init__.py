"""Wire values of the network adapter: NVSP messages, RNDIS messages, Ethernet frames in them."""
