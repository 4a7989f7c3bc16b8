#pragma once

#include "client/api.h"

#include <string>

namespace lamina::client {

/// The start of a lazy image as an SVG picture for people, over its time: how many bytes have come, when programs
/// waited and for which files, and a bar for each request (class "request"), as long as it took and in the colour of
/// what it was made for. Readable on light and on dark backgrounds. FailureError "not_found" when no start is known.
std::string start_chart(const api::Explanation& explanation);

/// "12.3 ms"; below zero: 0.
std::string human_time(std::int64_t microseconds);

}  // namespace lamina::client
