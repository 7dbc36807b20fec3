"""The include check catches each kind of include that the house does not allow.

SPDX-License-Identifier: Apache-2.0
"""

import unittest

from check_case import CheckCase

SCRIPT = "check_includes.py"


class CheckIncludesTest(CheckCase):
    def setUp(self):
        super().setUp()
        self.write("proto/agent.capnp", "@0xb7a4c1902e5fd683;\n")
        self.write("proto/limits.h", "#include <cstdint>\n")
        self.write("common/units.h", "#include <cstdint>\n")
        self.write("common/rpc.h", '#include <capnp/rpc.h>\n#include "proto/agent.capnp.h"\n')
        self.write("kernels/layout.h", '#include "absl/status/status.h"\n#include "common/units.h"\n')
        self.write("agent/pool.h", '#include "common/rpc.h"\n#include "kernels/layout.h"\n')
        self.write("manager/store.h", '#include "common/rpc.h"\n')
        self.write("client/kvpool.h", '#include "common/units.h"\n')
        self.write("worker/model.h", '#include "client/kvpool.h"\n')
        self.write("tests/agent/pool_test.cc", '#include "agent/pool.h"\n')

    def test_allowed_includes_pass(self):
        self.assert_clean(SCRIPT)

    def test_folders_that_the_table_does_not_allow(self):
        for path, target in [
            ("proto/a.h", "common/units.h"),
            ("common/a.h", "kernels/layout.h"),
            ("kernels/a.h", "common/rpc.h"),
            ("kernels/b.h", "proto/limits.h"),
            ("agent/a.h", "manager/store.h"),
            ("manager/a.h", "kernels/layout.h"),
            ("client/a.h", "agent/pool.h"),
            ("worker/a.h", "agent/pool.h"),
            ("agent/b.h", "tests/agent/pool_test.cc"),
        ]:
            with self.subTest(path):
                self.write(path, f'#pragma once\n#include "{target}"\n')
                folder = path.split("/")[0]
                self.assert_finds(f'{path}:2: {folder} may not include "{target}"', SCRIPT)
                (self.root / path).unlink()

    def test_rpc_in_a_kernel(self):
        self.write("kernels/layout.cc", "#include <kj/common.h>\n")
        self.assert_finds("kernels/layout.cc:1: reaches kj/common.h", SCRIPT)

    def test_boost_through_a_header_that_kernels_include(self):
        self.write("common/units.h", '#include "common/ids.h"\n')
        self.write("common/ids.h", "#include <boost/json.hpp>\n")
        output = self.assert_finds("common/units.h:1: reaches common/ids.h -> boost/json.hpp", SCRIPT)
        self.assertIn("kernels/layout.h:1: reaches common/units.h -> common/ids.h", output)

    def test_rpc_in_the_public_header(self):
        self.write("client/session.h", '#include "proto/agent.capnp.h"\n')
        self.write("client/kvpool.h", '#include "client/session.h"\n')
        self.assert_finds("client/kvpool.h:1: reaches client/session.h -> proto/agent.capnp.h", SCRIPT)

    def test_the_public_header_must_be_there(self):
        (self.root / "client/kvpool.h").rename(self.root / "client/other.h")
        self.assert_finds("client/kvpool.h:1: the client's public header is missing", SCRIPT)

    def test_path_that_is_not_from_the_top(self):
        self.write("agent/ledger.h", '#include "pool.h"\n#include "../common/units.h"\n')
        output = self.assert_finds('agent/ledger.h:1: "pool.h" must be a path', SCRIPT)
        self.assertIn('agent/ledger.h:2: "../common/units.h" must be a path', output)

    def test_our_header_in_angle_brackets(self):
        self.write("agent/ledger.h", "#include <agent/pool.h>\n")
        self.assert_finds("agent/ledger.h:1: <agent/pool.h> is ours", SCRIPT)

    def test_header_that_does_not_exist(self):
        self.write("agent/ledger.h", '#include "agent/gone.h"\n#include "proto/gone.capnp.h"\n')
        output = self.assert_finds('agent/ledger.h:1: "agent/gone.h" does not exist', SCRIPT)
        self.assertIn('agent/ledger.h:2: "proto/gone.capnp.h" does not exist', output)

    def test_a_folder_that_the_house_does_not_have(self):
        self.write("util/a.h", "#include <cstdint>\n")
        self.assert_finds("util/a.h:1: C++ outside the folders", SCRIPT)


if __name__ == "__main__":
    unittest.main()
