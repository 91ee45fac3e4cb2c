"""Tests of engine/base."""
