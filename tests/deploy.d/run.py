"""Runs the tests of this folder. The last line counts them."""

import os
import pathlib
import sys
import unittest

here = pathlib.Path(__file__).parent
sys.path.insert(0, str(here))
os.chdir(here.parents[1])
suite = unittest.defaultTestLoader.discover(str(here))
result = unittest.TextTestRunner(verbosity=2).run(suite)
failed = len({test.id().split(" ")[0] for test, _ in result.failures + result.errors})
print(f"deploy: {result.testsRun - failed} passed, {failed} failed")
sys.exit(failed > 0)
