"""Regions: operations that the compiler makes of a chain of leaves, as loops over tiles around ordinary kernel calls.

Here live the region's data, its indices, its loop nest and its memory; which calls become a region is a pass
(`compilation.passes.form`), and the C of it is `runtime.codegen`'s.
"""
