// The one translation unit that compiles the bodies of Boost.Asio's TLS. Nothing else belongs here.
//
// SPDX-License-Identifier: Apache-2.0
#include <boost/asio/ssl/impl/src.hpp>
