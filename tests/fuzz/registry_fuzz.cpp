#include "fuzz/checks.h"
#include "store/credentials.h"
#include "store/digest.h"
#include "store/http_fields.h"
#include "store/http_url.h"
#include "store/registries_conf.h"

#include <cstdint>
#include <string>
#include <string_view>

// What registries send in header fields, and what people write into files about them, out of any bytes. The first byte
// chooses what they are. Nothing may crash or run long; an error is one line of printable text; what was accepted can
// be written and is accepted again.

namespace {

using namespace lamina::store;
using lamina::fuzz::check;
using lamina::fuzz::refuse_or;

void fuzz_fields(std::string_view text) {
    for (const Challenge& challenge : parse_challenges(text)) {
        check(!challenge.scheme.empty() && challenge.parameters.size() <= 16);
    }
    if (const auto range = parse_content_range(text)) {
        check(range->first <= range->last && (!range->total_bytes || range->last < *range->total_bytes));
    }
    if (const auto seconds = parse_retry_after(text, 1'700'000'000))
        check(seconds->count() >= 0 && seconds->count() <= 86'400);
    static_cast<void>(is_private_address(text));
}

void fuzz_url(std::string_view text) {
    refuse_or([&] {
        const Url url = Url::parse(text);
        check(!url.host().empty() && url.text().size() <= 8 << 10);
        check(Url::parse(url.text()).origin() == url.origin());
        check(url.shown().find('?') == std::string::npos);
    });
    refuse_or([&] {
        const Url base = Url::parse("https://registry.example/v2/a/blobs/b?c=d");
        const Url next = base.resolve(text);
        check(next.origin().starts_with("http"));
        check(Url::parse(next.text()).origin() == next.origin());
    });
}

void fuzz_reference(std::string_view text) {
    refuse_or([&] {
        const RegistryReference reference = RegistryReference::parse(text);
        check(RegistryReference::parse(reference.text()).text() == reference.text());
        check(!reference.reference().empty() && reference.repository.find("..") == std::string::npos);
        if (!reference.host.empty()) static_cast<void>(Url::parse("https://" + reference.host + "/"));
    });
}

void fuzz_conf(std::string_view text) {
    RegistriesConf conf;
    refuse_or([&] { conf.add(text, "fuzz.conf"); });
    for (const char* name : {"debian", "docker.io/library/debian:12", "a.example/x:1", "localhost:5000/a/b"}) {
        refuse_or([&] { check(!conf.places(RegistryReference::parse(name)).empty()); });
        refuse_or([&] { static_cast<void>(conf.place_for_push(RegistryReference::parse(name))); });
    }
}

void fuzz_auth_file(std::string_view text) {
    for (const char* host : {"docker.io", "a.example", "localhost:5000"}) {
        refuse_or([&] { static_cast<void>(find_in_auth_file(as_bytes(text), {host, "library/debian"})); });
    }
    if (const auto decoded = decode_base64(text)) {
        const auto again = decode_base64(encode_base64(*decoded));
        check(again == decoded);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
    switch (data[0] % 5) {
        case 0:
            fuzz_fields(text);
            break;
        case 1:
            fuzz_url(text);
            break;
        case 2:
            fuzz_reference(text);
            break;
        case 3:
            fuzz_conf(text);
            break;
        case 4:
            fuzz_auth_file(text);
            break;
    }
    return 0;
}
