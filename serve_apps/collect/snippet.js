/* Manta web snippet. <script async src="https://…/v1/snippet.js" data-key="manta_…"></script>
   Counts page views and what the page reports, first-party: one id in this site's own storage, no
   cookies, nothing of other sites. Does nothing while the visitor asks not to be tracked (GPC, DNT)
   or the page has set window.mantaDisabled. */
(function () {
  "use strict";
  var script = document.currentScript, nav = navigator;
  if (!script || window.manta && window.manta.track) return;
  var key = script.getAttribute("data-key"), base = new URL(script.src).origin + "/v1/collect";
  var waiting = (window.manta && window.manta.q) || [], queue = [], timer = 0, held = {};
  var off = window.mantaDisabled || nav.globalPrivacyControl || nav.doNotTrack === "1";

  function kept(name, value) {
    try {
      if (value === undefined) return localStorage.getItem(name) || held[name] || "";
      localStorage.setItem(name, value);
    } catch (e) { if (value === undefined) return held[name] || ""; }
    held[name] = value;
  }
  function fresh() {
    var bytes = crypto.getRandomValues(new Uint8Array(16)), text = "";
    for (var i = 0; i < 16; i++) text += ("0" + bytes[i].toString(16)).slice(-2);
    return text;
  }
  // The token of a click: taken once, and out of the address, so that a copied address names nobody.
  function arrived() {
    var url = new URL(location.href), token = url.searchParams.get("mt");
    if (!token) return "";
    url.searchParams.delete("mt");
    history.replaceState(history.state, "", url.href);
    return token;
  }
  if (off) { arrived(); window.manta = { track: no, purchase: no, page: no, identify: no }; return; }
  function no() {}
  var token = arrived(), visitor = kept("manta_id");
  if (!visitor) { visitor = fresh(); kept("manta_id", visitor); }

  function add(message) {
    message.messageId = fresh();
    message.anonymousId = visitor;
    message.timestamp = new Date().toISOString();
    message.context = { page: { url: location.href, title: document.title, referrer: document.referrer } };
    queue.push(message);
    if (queue.length > 200) queue.shift();
    if (!timer) timer = setTimeout(flush, 300);
  }
  function flush(leaving) {
    clearTimeout(timer); timer = 0;
    if (!queue.length) return;
    var batch = queue.splice(0, 20), body = { writeKey: key, sentAt: new Date().toISOString(), batch: batch };
    if (token) body.token = token;
    fetch(base, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "text/plain" },
                  keepalive: leaving === true, credentials: "omit", mode: "cors" })
      .then(function (answer) {
        if (answer.ok) token = "";
        else if (answer.status === 429 || answer.status >= 500) again(batch);
      }, function () { again(batch); });
    if (queue.length) timer = setTimeout(flush, 300);
  }
  // Each message has its id, so sending it again counts once.
  function again(batch) {
    queue = batch.concat(queue).slice(0, 200);
    if (!timer) timer = setTimeout(flush, 5000);
  }
  var manta = {
    page: function (name, properties) { add({ type: "page", name: name, properties: properties || { url: location.href } }); },
    track: function (event, properties) { add({ type: "track", event: event, properties: properties || {} }); },
    // { order_id, total, currency, products: [{ product_id, price, quantity }] }
    purchase: function (order) { add({ type: "track", event: "Order Completed", properties: order }); },
    // Who the visitor is, by a signed token alone: a page cannot name people.
    identify: function (signed) { token = String(signed); manta.page(); flush(); }
  };
  window.manta = manta;
  addEventListener("pagehide", function () { flush(true); });
  manta.page();
  for (var i = 0; i < waiting.length; i++) manta[waiting[i][0]].apply(manta, waiting[i].slice(1));
})();
