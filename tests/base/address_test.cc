// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

namespace r1d::base {
namespace {

std::string refusal(std::string_view text) {
  const auto address = parse_address(text);
  return address.ok() ? "accepted " + format_address(*address) : message_of(address.status());
}

TEST(AddressTest, ReadsNamesAndNumbers) {
  const auto numeric = parse_address("127.0.0.1:8081");
  ASSERT_TRUE(numeric.ok());
  EXPECT_EQ(numeric->host, "127.0.0.1");
  EXPECT_EQ(numeric->port, 8081);
  const auto name = parse_address("my-host.example_net:0");
  ASSERT_TRUE(name.ok());
  EXPECT_EQ(name->host, "my-host.example_net");
  EXPECT_EQ(name->port, 0);
}

TEST(AddressTest, ReadsIpv6InBracketsAlone) {
  const auto address = parse_address("[fe80::1%eth0]:65535");
  ASSERT_TRUE(address.ok());
  EXPECT_EQ(address->host, "fe80::1%eth0");
  EXPECT_EQ(address->port, 65535);
  EXPECT_THAT(refusal("::1:8081"), testing::HasSubstr("brackets"));
  EXPECT_THAT(refusal("[::1:8081"), testing::HasSubstr("']'"));
}

TEST(AddressTest, WritesWhatItReads) {
  for (const char* text : {"127.0.0.1:8081", "[::1]:0", "localhost:65535"}) {
    const auto address = parse_address(text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(format_address(*address), text);
  }
}

TEST(AddressTest, SaysWhatIsWrong) {
  for (const char* text : {"", "localhost", "8081", "[::1]", "[::1]8081"}) {
    EXPECT_THAT(refusal(text), testing::HasSubstr("expected host:port")) << text;
  }
  for (const char* text : {":8081", "[]:8081"}) {
    EXPECT_THAT(refusal(text), testing::HasSubstr("expected a host before the port")) << text;
  }
  for (const char* text :
       {"a:", "a:65536", "a:-1", "a:+1", "a: 1", "a:1 ", "a:http", "a:99999999999"}) {
    EXPECT_THAT(refusal(text), testing::HasSubstr("port from 0 to 65535")) << text;
  }
  for (const char* text : {"a b:1", "http://a:1", "a\n:1", "*:1"}) {
    EXPECT_THAT(refusal(text), testing::HasSubstr("expected")) << text;
  }
}

}  // namespace
}  // namespace r1d::base
