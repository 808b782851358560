"""Resumable work on this process, local ones or Ray."""
