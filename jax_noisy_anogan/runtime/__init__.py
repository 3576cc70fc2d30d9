"""Devices, processes, folders, files and the screen: what any long program needs."""
