#include "client/api.h"

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

// API requests and replies out of any bytes. The first byte chooses the message. Nothing but the one error may come out
// of them; a request that is taken can be written, and is taken again as the same.

namespace {

using namespace lamina;

void check(bool is_so) {
    if (!is_so) std::abort();
}

template <class T>
void fuzz_request(std::string_view text) {
    try {
        const std::string written = api::to_text(api::parse_request<T>(text));
        check(api::to_text(api::parse_request<T>(written)) == written);
    } catch (const api::FailureError& error) {
        check(!error.failure().message.empty() && !error.failure().code.empty());
    }
}

template <class T>
void fuzz_reply(std::string_view text) {
    try {
        static_cast<void>(api::parse_reply<T>(api::parse_reply_value(text)));
    } catch (const api::FailureError& error) {
        check(!error.failure().message.empty());
    }
}

void fuzz_percent(std::string_view text) {
    check(api::percent_decode(api::percent_encode(text)) == text);
    try {
        static_cast<void>(api::percent_decode(text));
    } catch (const api::FailureError&) {
        // A broken escape.
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
    switch (data[0] % 8) {
        case 0:
            fuzz_request<api::ImportRequest>(text);
            break;
        case 1:
            fuzz_request<api::MountRequest>(text);
            break;
        case 2:
            fuzz_request<api::VerifyRequest>(text);
            break;
        case 3:
            fuzz_request<api::UpkeepRequest>(text);
            break;
        case 4:
            fuzz_reply<api::Ping>(text);
            break;
        case 5:
            fuzz_reply<api::Usage>(text);
            break;
        case 6:
            fuzz_reply<api::Mounts>(text);
            break;
        default:
            fuzz_percent(text);
    }
    return 0;
}
