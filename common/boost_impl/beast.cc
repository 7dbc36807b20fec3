// The one translation unit that compiles Boost.Beast's bodies. Nothing else belongs here.
//
// SPDX-License-Identifier: Apache-2.0
#include <boost/beast/src.hpp>
