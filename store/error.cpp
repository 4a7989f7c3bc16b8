#include "store/error.h"

#include <system_error>

#include <cerrno>

namespace lamina::store {

namespace {

Errc code_of(int error_number) {
    switch (error_number) {
        case ENOENT:
        case ENOTDIR:
            return Errc::not_found;
        case EEXIST:
            return Errc::already_exists;
        case ENOSPC:
            return Errc::no_space;
        case EDQUOT:
            return Errc::quota;
        case EBUSY:
        case ETXTBSY:
            return Errc::busy;
        case EROFS:
            return Errc::read_only;
        case EINTR:
            return Errc::cancelled;
        case EIO:
            return Errc::corrupt;
        case ETIMEDOUT:
            return Errc::timed_out;
        default:
            return Errc::unavailable;
    }
}

}  // namespace

std::string_view errc_name(Errc code) {
    switch (code) {
        case Errc::not_found:
            return "not_found";
        case Errc::already_exists:
            return "already_exists";
        case Errc::malformed:
            return "malformed";
        case Errc::corrupt:
            return "corrupt";
        case Errc::no_space:
            return "no_space";
        case Errc::quota:
            return "quota";
        case Errc::busy:
            return "busy";
        case Errc::denied:
            return "denied";
        case Errc::read_only:
            return "read_only";
        case Errc::cancelled:
            return "cancelled";
        case Errc::unavailable:
            return "unavailable";
        case Errc::timed_out:
            return "timed_out";
        case Errc::unsupported:
            return "unsupported";
        case Errc::internal:
            return "internal";
    }
    return "internal";
}

void throw_errno(int error_number, std::string_view what) {
    std::string text(what);
    text += ": ";
    text += std::generic_category().message(error_number);
    throw Error(code_of(error_number), text);
}

Error with_context(const Error& error, std::string_view context) {
    std::string text(context);
    text += ": ";
    text += error.what();
    return Error(error.code(), text);
}

}  // namespace lamina::store
