// A scripted session through the public Segment library for Node: host, write key and name of the
// person are arguments. Ends with an error unless everything was delivered.
import { Analytics } from "@segment/analytics-node";

const [host, writeKey, name] = process.argv.slice(2);
const visitor = `${name}-visitor`;
const analytics = new Analytics({ host, writeKey, maxRetries: 3, flushAt: 20 });
const errors = [];
analytics.on("error", (error) => errors.push(error));

analytics.page({ anonymousId: visitor, name: "Home", properties: { url: "https://shop.example/" } });
analytics.track({ anonymousId: visitor, event: "Product Viewed", properties: { product_id: "shoe" } });
analytics.identify({
  userId: name,
  anonymousId: visitor,
  traits: { email: `${name}@shop.example`, firstName: name, plan: "pro", address: { city: "Bern" } },
});
analytics.track({
  userId: name,
  event: "Order Completed",
  properties: {
    order_id: `${name}-1`, total: 99.5, currency: "EUR",
    products: [{ product_id: "shoe", price: 45, quantity: 2 }, { sku: "lace", price: 9.5 }],
  },
});
analytics.track({
  userId: name, event: "Newsletter Read", timestamp: new Date("2024-02-03T04:05:06Z"),
});
analytics.screen({ userId: name, name: "Orders" });
analytics.group({ userId: name, groupId: "acme", traits: { seats: 3 } });
analytics.identify({ userId: name, traits: { plan: "max" } });
analytics.track({ userId: `${name}-old`, event: "Of Earlier" });
analytics.alias({ userId: name, previousId: `${name}-old` });

await analytics.closeAndFlush({ timeout: 20000 });
if (errors.length) {
  console.error(errors);
  process.exit(1);
}
