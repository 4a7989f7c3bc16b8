#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace lamina::store {

/// Why an operation failed. Each has one errno (fuse/result.h) and one HTTP status (daemon/handlers.cpp).
enum class Errc {
    not_found,       ///< The named thing does not exist.
    already_exists,  ///< The name is taken.
    malformed,       ///< Input from outside breaks its format or a limit.
    corrupt,         ///< Bytes do not match the digest or checksum that names them.
    no_space,        ///< ENOSPC.
    quota,           ///< EDQUOT.
    busy,            ///< In use by another process or job.
    read_only,       ///< The target may not be changed.
    denied,          ///< A registry wants credentials, others, or does not allow it.
    cancelled,       ///< The caller asked to stop.
    unavailable,     ///< A source or the disk does not answer; another try may help.
    timed_out,       ///< A limit of time was reached.
    unsupported,     ///< Valid, but nothing that this version can do.
    internal,        ///< Our own mistake.
};

std::string_view errc_name(Errc code);  ///< "not_found" and so on; the word that the API carries.

/// The one exception of store/ and daemon/. The text is one line: what, why, and where known what to do.
class Error : public std::runtime_error {
public:
    Error(Errc code, const std::string& text) : std::runtime_error(text), code_(code) {}
    Errc code() const noexcept { return code_; }

private:
    Errc code_;
};

/// Throws an Error for `error_number` (ENOSPC becomes no_space and so on): "open /x/y: No such file or directory".
[[noreturn]] void throw_errno(int error_number, std::string_view what);

/// A copy of `error` whose text begins with "context: ".
Error with_context(const Error& error, std::string_view context);

}  // namespace lamina::store
