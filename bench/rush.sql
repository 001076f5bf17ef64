-- The database of the first part of bench/rush, and its own record of what
-- every caller was told.

CREATE EXTENSION shop;
CREATE SCHEMA rush;

-- Unlogged, so that a call that wrote nothing still waits for no flush.  Like
-- any other row it is there if and only if its transaction committed.
CREATE UNLOGGED TABLE rush.answer (
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    verb        text NOT NULL,
    campaign_id bigint NOT NULL,
    user_id     bigint NOT NULL,
    outcome     text NOT NULL,
    coupon_id   bigint,
    expires_at  timestamptz
);

CREATE FUNCTION rush.refusal(code text) RETURNS text
    LANGUAGE sql STABLE
    AS $$SELECT condition FROM shop.error_codes() WHERE sqlstate = code AND code LIKE 'SH%'$$;

-- Notes what issue_coupon returns, or the name of the refusal that it raises.
-- Any other error goes on to the client.
CREATE FUNCTION rush.issue_coupon(campaign_id bigint, user_id bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    r record;
    refusal text;
BEGIN
    BEGIN
        SELECT * INTO r FROM shop.issue_coupon(campaign_id, user_id);
    EXCEPTION WHEN OTHERS THEN
        refusal := rush.refusal(SQLSTATE);
        IF refusal IS NULL THEN
            RAISE;
        END IF;
    END;
    IF refusal IS NULL THEN
        INSERT INTO rush.answer (verb, campaign_id, user_id, outcome, coupon_id, expires_at)
        VALUES ('issue_coupon', r.campaign_id, r.user_id, 'ok', r.coupon_id, r.expires_at);
    ELSE
        INSERT INTO rush.answer (verb, campaign_id, user_id, outcome)
        VALUES ('issue_coupon', campaign_id, user_id, refusal);
    END IF;
END
$$;

SELECT name FROM shop.create_endpoint('platform', 'function:shop.receive_event', options => '{"from_start": true}');
