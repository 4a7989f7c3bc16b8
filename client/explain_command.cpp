// explain: where an image's bytes came from, and who waited for them.

#include "client/commands.h"
#include "client/output.h"
#include "client/start_chart.h"
#include "client/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

namespace lamina::client {

namespace json = boost::json;

namespace {

constexpr std::string_view kNone = "-";

void print_layers(const api::Explanation& explanation) {
    Table layers({{"LAYER"},
                  {"STATE"},
                  {"BLOB", true},
                  {"FILES", true},
                  {"MISSING", true},
                  {"WAITED FOR", true},
                  {"AHEAD", true},
                  {"REST", true},
                  {"LOCAL", true},
                  {"SHARED", true}});
    for (const api::ExplainedLayer& layer : explanation.layers) {
        layers.add({short_digest(layer.diff_id), layer.state,
                    layer.blob_bytes == 0 ? std::string(kNone) : human_bytes(layer.blob_bytes),
                    human_bytes(layer.chunk_bytes), human_bytes(layer.missing_bytes), human_bytes(layer.waited_bytes),
                    human_bytes(layer.prefetched_bytes), human_bytes(layer.rest_bytes), human_bytes(layer.local_bytes),
                    human_bytes(layer.shared_bytes)});
    }
    layers.print();
    for (const api::ExplainedLayer& layer : explanation.layers) {
        const std::string name = short_digest(layer.diff_id);
        if (!layer.why.empty()) print_text(fmt::format("{}: {}\n", name, printable(layer.why)));
        std::string shares;
        for (const api::ExplainedShare& share : layer.shares) {
            shares +=
                fmt::format("{}{} ({})", shares.empty() ? "" : ", ", printable(share.image), human_bytes(share.bytes));
        }
        if (!shares.empty()) print_text(fmt::format("{}: shared with {}\n", name, shares));
    }
}

void print_fetched(const api::Explanation& explanation) {
    Table fetched({{"\nLAYER"},
                   {"FETCHED"},
                   {"FROM"},
                   {"REQUESTS", true},
                   {"FAILED", true},
                   {"BYTES", true},
                   {"FIRST BYTE", true},
                   {"RATE", true}});
    bool is_any = false;
    const auto add = [&](const std::string& of, const std::vector<api::ExplainedFetch>& sums) {
        for (const api::ExplainedFetch& sum : sums) {
            is_any = true;
            const double rate =
                static_cast<double>(sum.bytes) * 1e6 / static_cast<double>(std::max<std::int64_t>(sum.transfer_us, 1));
            fetched.add({of, sum.kind, printable(sum.source), std::to_string(sum.requests),
                         std::to_string(sum.failures), human_bytes(sum.bytes),
                         sum.bytes == 0 ? std::string(kNone) : human_time(sum.first_byte_us),
                         sum.bytes == 0 ? std::string(kNone) : human_bytes(static_cast<std::uint64_t>(rate)) + "/s"});
        }
    };
    add("start bundle", explanation.bundles);
    for (const api::ExplainedLayer& layer : explanation.layers) add(short_digest(layer.diff_id), layer.fetched);
    if (is_any) fetched.print();
}

std::string names_of(const api::ExplainedWait& wait) {
    std::string names;
    for (const std::string& path : wait.paths) names += (names.empty() ? "" : ", ") + printable(path);
    return names.empty() ? short_digest(wait.chunk) : names;
}

std::string cause_of(const api::ExplainedWait& wait) {
    if (!wait.error.empty()) return printable(wait.error);
    if (wait.kind == "waited") return "a request for it";
    if (wait.kind == "trace") return "the start trace's request";
    return wait.kind == "rest" ? "a request for the rest" : "a request ahead of it";
}

void print_start(const api::ExplainedStart& start) {
    if (start.mount.empty())
        return print_text("\nno start is known: it was not mounted while it was lazy, or long ago\n");
    print_text(fmt::format("\nmounted {} ({}); since then {} requests brought {}\n",
                           human_age(start.begun_us / 1'000'000), start.mount, start.request_count,
                           human_bytes(start.fetched_bytes)));
    if (start.wait_count == 0) {
        print_text("nobody waited\n");
    } else {
        print_text(fmt::format("waited {} times, {} in all, the last time until {} after the mount\n", start.wait_count,
                               human_time(start.wait_us), human_time(start.last_wait_us - start.begun_us)));
    }
    std::string came =
        fmt::format("of files came: {} that it waited for, {} ahead, {} of the rest", human_bytes(start.waited_bytes),
                    human_bytes(start.prefetched_bytes), human_bytes(start.rest_bytes));
    if (start.reads_known) {
        came += fmt::format("; of the first two {} were read, {} not", human_bytes(start.read_bytes),
                            human_bytes(start.unread_bytes));
    }
    print_text(came + "\n");
    if (start.longest_waits.empty()) return;
    Table waits({{"\nWAIT", true}, {"AT", true}, {"BYTES", true}, {"ENDED BY"}, {"FOR"}});
    for (const api::ExplainedWait& wait : start.longest_waits) {
        waits.add({human_time(wait.end_us - wait.begin_us), human_time(wait.begin_us - start.begun_us),
                   human_bytes(wait.size_bytes), cause_of(wait), names_of(wait)});
    }
    waits.print();
}

void run_explain(const Globals& globals, const std::string& of, const std::string& path, const std::string& chart) {
    check_chart_path(chart);
    const json::value reply = globals.connect().get(with_query(api::path::kExplain, {{"of", of}, {"path", path}}));
    const auto explanation = api::parse_reply<api::Explanation>(reply);
    if (!chart.empty()) write_chart(chart, start_chart(explanation));
    if (globals.json) return print_json(reply);
    print_text(fmt::format("{}  {}\n", short_digest(explanation.id), printable(explanation.image)));
    if (!explanation.path.empty()) {
        print_text(fmt::format("{}  {}\n", printable(explanation.path), human_bytes(explanation.size_bytes)));
    }
    print_text("\n");
    print_layers(explanation);
    print_fetched(explanation);
    print_start(explanation.start);
    for (std::size_t i = 0; i < explanation.hints.size(); ++i) {
        print_text(fmt::format("{}- {}\n", i == 0 ? "\nwhat would help:\n" : "", printable(explanation.hints[i])));
    }
}

}  // namespace

void add_explain_command(const CommandContext& context) {
    struct Arguments {
        std::string of, path, chart;
    };
    const auto args = std::make_shared<Arguments>();
    CLI::App* const command =
        context.app.add_subcommand("explain", "Show where an image's bytes came from, and who waited for them");
    command->add_option("MOUNT|IMAGE", args->of, "A mount, or an image")->required();
    command->add_option("PATH", args->path, "Only this file of the image");
    command->add_option("--chart", args->chart, "Also draw the last start, into FILE.svg");
    command->callback([context, args] {
        context.run = [&globals = context.globals, args] { run_explain(globals, args->of, args->path, args->chart); };
    });
}

}  // namespace lamina::client
