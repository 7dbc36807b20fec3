// The one translation unit that compiles Boost.Asio's bodies. Nothing else belongs here.
//
// SPDX-License-Identifier: Apache-2.0
#include <boost/asio/impl/src.hpp>
