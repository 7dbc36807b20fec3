// The one translation unit that compiles Boost.JSON's bodies. Nothing else belongs here.
//
// SPDX-License-Identifier: Apache-2.0
#include <boost/json/src.hpp>
